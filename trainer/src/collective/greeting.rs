//! The first words on every connection between ranks: who are you, and can you prove it?
//!
//! Both sides send `magic, version, nonce, length, JSON`, then both send an HMAC-SHA-256 over
//! all that was said, keyed with the run's shared secret, and check the other's. Without a
//! secret the key is empty: the exchange then guards against mistakes, not against attackers.
//! What follows on the connection is not encrypted.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// First bytes of the protocol; the last is its version.
const MAGIC: [u8; 4] = *b"MRQ\x01";

const NONCE_BYTES: usize = 16;

const MAC_BYTES: usize = 32;

/// A greeting is short; more is no greeting.
const MAX_JSON_BYTES: usize = 4096;

/// What a stranger may take to greet.
pub(super) const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// What a rank says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Greeting {
    pub rank: usize,
    pub world_size: usize,
    /// What the connection is for: `store`, or a group's role.
    pub role: String,
    /// Run and restart.
    pub attempt: String,
    /// Of the resolved configuration.
    pub config_digest: String,
}

/// Which end of the connection this is; keeps a MAC from being sent back to its maker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Caller,
    Answerer,
}

/// Why two processes do not work together.
#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    /// The connection ended or broke.
    #[error("exchanging greetings")]
    Io(#[from] io::Error),
    /// Something else listens there.
    #[error("the other side does not speak this protocol: it began with {found:02x?}")]
    Protocol {
        /// Its first bytes.
        found: [u8; 4],
    },
    /// Another release.
    #[error(
        "the other side speaks version {found} of the protocol, this one {wanted}: run the same release everywhere"
    )]
    Version {
        /// Its version.
        found: u8,
        /// Ours.
        wanted: u8,
    },
    /// Its greeting is none.
    #[error("the other side's greeting cannot be read")]
    Malformed(#[source] serde_json::Error),
    /// Its greeting is too long to be one.
    #[error("the other side's greeting has {bytes} bytes, more than {MAX_JSON_BYTES}")]
    TooLong {
        /// What it announced.
        bytes: usize,
    },
    /// It does not know the secret.
    #[error(
        "rank {rank} does not know the run's shared secret: give all ranks the same collective.secret_file"
    )]
    Secret {
        /// Who it said it was.
        rank: usize,
    },
    /// A process of another run or of an earlier attempt.
    #[error("rank {rank} belongs to attempt `{found}`, this one to `{wanted}`")]
    Attempt {
        /// The rank.
        rank: usize,
        /// Its attempt.
        found: String,
        /// Ours.
        wanted: String,
    },
    /// It trains something else.
    #[error(
        "rank {rank} has configuration {found}, this one {wanted}: start all ranks with the same configuration"
    )]
    Config {
        /// The rank.
        rank: usize,
        /// Its digest.
        found: String,
        /// Ours.
        wanted: String,
    },
    /// It counts other ranks.
    #[error("rank {rank} says there are {found} ranks, this one {wanted}")]
    WorldSize {
        /// The rank.
        rank: usize,
        /// Its count.
        found: usize,
        /// Ours.
        wanted: usize,
    },
    /// Two with the same number, or one too high.
    #[error("rank {rank} of {world_size} joins as `{role}`, where it is not expected")]
    Unexpected {
        /// The rank.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
        /// What it came for.
        role: String,
    },
}

/// Exchanges greetings on a fresh, blocking connection; returns the other's, which is proven to know
/// the secret.
pub(super) fn exchange(
    stream: &mut TcpStream,
    ours: &Greeting,
    side: Side,
    secret: &[u8],
) -> Result<Greeting, GreetingError> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(GREETING_TIMEOUT))?;
    // A greeting is plain text and numbers, which JSON can always say.
    let json = serde_json::to_vec(ours).expect("a greeting is JSON");
    let mut said = Vec::with_capacity(64 + json.len());
    said.extend(MAGIC);
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(io::Error::from)?;
    said.extend(nonce);
    said.extend((json.len() as u32).to_le_bytes());
    said.extend(json);
    stream.write_all(&said)?;

    let heard = hear(stream)?;
    stream.write_all(&mac(secret, side, &said, &heard).finalize().into_bytes())?;
    let text = &heard[MAGIC.len() + NONCE_BYTES + 4..];
    let theirs: Greeting = serde_json::from_slice(text).map_err(GreetingError::Malformed)?;
    let mut proof = [0; MAC_BYTES];
    stream.read_exact(&mut proof)?;
    let other = match side {
        Side::Caller => Side::Answerer,
        Side::Answerer => Side::Caller,
    };
    mac(secret, other, &heard, &said)
        .verify_slice(&proof)
        .map_err(|_| GreetingError::Secret { rank: theirs.rank })?;
    Ok(theirs)
}

/// All bytes of the other's greeting.
fn hear(stream: &mut TcpStream) -> Result<Vec<u8>, GreetingError> {
    let mut heard = vec![0; MAGIC.len() + NONCE_BYTES + 4];
    stream.read_exact(&mut heard[..MAGIC.len()])?;
    let found = [heard[0], heard[1], heard[2], heard[3]];
    if found[..3] != MAGIC[..3] {
        return Err(GreetingError::Protocol { found });
    }
    if found[3] != MAGIC[3] {
        return Err(GreetingError::Version {
            found: found[3],
            wanted: MAGIC[3],
        });
    }
    stream.read_exact(&mut heard[MAGIC.len()..])?;
    let length = &heard[MAGIC.len() + NONCE_BYTES..];
    let bytes = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
    if bytes > MAX_JSON_BYTES {
        return Err(GreetingError::TooLong { bytes });
    }
    let start = heard.len();
    heard.resize(start + bytes, 0);
    stream.read_exact(&mut heard[start..])?;
    Ok(heard)
}

fn mac(secret: &[u8], speaker: Side, said: &[u8], heard: &[u8]) -> Hmac<Sha256> {
    // HMAC takes keys of every length.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length");
    mac.update(&[speaker as u8]);
    mac.update(said);
    mac.update(heard);
    mac
}

impl Greeting {
    /// Whether the other belongs to the same run, comes for the same thing, and is one of its
    /// ranks.
    pub fn check(&self, theirs: &Self) -> Result<(), GreetingError> {
        let rank = theirs.rank;
        if theirs.attempt != self.attempt {
            return Err(GreetingError::Attempt {
                rank,
                found: theirs.attempt.clone(),
                wanted: self.attempt.clone(),
            });
        }
        if theirs.config_digest != self.config_digest {
            return Err(GreetingError::Config {
                rank,
                found: theirs.config_digest.clone(),
                wanted: self.config_digest.clone(),
            });
        }
        if theirs.world_size != self.world_size {
            return Err(GreetingError::WorldSize {
                rank,
                found: theirs.world_size,
                wanted: self.world_size,
            });
        }
        if theirs.role != self.role || rank >= self.world_size {
            return Err(self.unexpected(theirs));
        }
        Ok(())
    }

    pub fn unexpected(&self, theirs: &Self) -> GreetingError {
        GreetingError::Unexpected {
            rank: theirs.rank,
            world_size: self.world_size,
            role: theirs.role.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use proptest::prelude::*;

    use super::*;

    fn greeting(rank: usize) -> Greeting {
        Greeting {
            rank,
            world_size: 2,
            role: "dense".into(),
            attempt: "run/0".into(),
            config_digest: "c0ffee".into(),
        }
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (caller, listener.accept().unwrap().0)
    }

    #[test]
    fn two_that_share_a_secret_hear_each_other() {
        let (mut caller, mut answerer) = pair();
        let other = thread::spawn(move || {
            exchange(&mut answerer, &greeting(1), Side::Answerer, b"secret").unwrap()
        });
        let found = exchange(&mut caller, &greeting(0), Side::Caller, b"secret").unwrap();
        assert_eq!(found, greeting(1));
        assert_eq!(other.join().unwrap(), greeting(0));
        greeting(0).check(&found).unwrap();
    }

    #[test]
    fn another_secret_is_refused_by_both() {
        let (mut caller, mut answerer) = pair();
        let other = thread::spawn(move || {
            exchange(&mut answerer, &greeting(1), Side::Answerer, b"guess").unwrap_err()
        });
        let error = exchange(&mut caller, &greeting(0), Side::Caller, b"secret").unwrap_err();
        assert!(
            matches!(error, GreetingError::Secret { rank: 1 }),
            "{error}"
        );
        assert!(matches!(
            other.join().unwrap(),
            GreetingError::Secret { rank: 0 }
        ));
    }

    #[test]
    fn a_greeting_sent_back_proves_nothing() {
        let (mut caller, mut mirror) = pair();
        let echo = thread::spawn(move || {
            let mut copy = mirror.try_clone().unwrap();
            io::copy(&mut mirror, &mut copy).ok();
        });
        let error = exchange(&mut caller, &greeting(0), Side::Caller, b"secret").unwrap_err();
        assert!(matches!(error, GreetingError::Secret { .. }), "{error}");
        drop(caller);
        echo.join().unwrap();
    }

    #[test]
    fn every_difference_has_its_error() {
        type Change = fn(&mut Greeting);
        type Expected = fn(&GreetingError) -> bool;
        let cases: [(Change, Expected); 5] = [
            (
                |g| g.attempt = "run/1".into(),
                |e| matches!(e, GreetingError::Attempt { .. }),
            ),
            (
                |g| g.config_digest = "beef".into(),
                |e| matches!(e, GreetingError::Config { .. }),
            ),
            (
                |g| g.world_size = 3,
                |e| matches!(e, GreetingError::WorldSize { .. }),
            ),
            (
                |g| g.role = "ids".into(),
                |e| matches!(e, GreetingError::Unexpected { .. }),
            ),
            (
                |g| g.rank = 2,
                |e| matches!(e, GreetingError::Unexpected { .. }),
            ),
        ];
        for (change, expected) in cases {
            let mut theirs = greeting(1);
            change(&mut theirs);
            let error = greeting(0).check(&theirs).unwrap_err();
            assert!(expected(&error), "{error}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let (mut caller, mut answerer) = pair();
        answerer.write_all(b"MRQ\x07").unwrap();
        let error = exchange(&mut caller, &greeting(0), Side::Caller, b"").unwrap_err();
        assert!(
            matches!(
                error,
                GreetingError::Version {
                    found: 7,
                    wanted: 1
                }
            ),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_agree(bytes in prop::collection::vec(any::<u8>(), 0..200), honest_start in any::<bool>()) {
            let (mut caller, mut answerer) = pair();
            if honest_start {
                answerer.write_all(&MAGIC).unwrap();
            }
            answerer.write_all(&bytes).unwrap();
            answerer.shutdown(std::net::Shutdown::Write).unwrap();
            prop_assert!(exchange(&mut caller, &greeting(0), Side::Caller, b"secret").is_err());
        }
    }
}
