//! Who this process is among the ranks: torchrun's environment variables.

use std::str::FromStr;

/// This process's place in the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// This rank, from 0.
    pub rank: usize,
    /// Its number on its own machine, from 0: which GPU it takes.
    pub local_rank: usize,
    /// How many ranks there are.
    pub world_size: usize,
    /// Where rank 0 is found.
    pub master_addr: String,
    /// The port on which rank 0 holds the rendezvous.
    pub master_port: u16,
    /// Name of the run and number of its restart; ranks of another attempt are turned away.
    pub attempt: String,
}

/// Why the environment says nothing useful.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Some variables are set and this one is not.
    #[error(
        "{name} is not set, but WORLD_SIZE is: start the ranks with `marquee launch run`, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
    )]
    Missing {
        /// The variable.
        name: &'static str,
    },
    /// No number, or one out of range.
    #[error("{name} is `{value}`, wanted {wanted}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        wanted: String,
    },
}

impl Membership {
    /// The only rank of a run in one process.
    pub fn alone() -> Self {
        Self {
            rank: 0,
            local_rank: 0,
            world_size: 1,
            master_addr: "127.0.0.1".to_owned(),
            master_port: 0,
            attempt: String::new(),
        }
    }

    /// Reads `RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`,
    /// `TORCHELASTIC_RUN_ID` and `TORCHELASTIC_RESTART_COUNT` by `variable`; without `WORLD_SIZE`
    /// the process is alone.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, MembershipError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        if variable("WORLD_SIZE").is_none() {
            return Ok(Self::alone());
        }
        let needed = |name| variable(name).ok_or(MembershipError::Missing { name });
        let world_size = number(
            "WORLD_SIZE",
            needed("WORLD_SIZE")?,
            |size: &usize| *size > 0,
            "1 or more",
        )?;
        let rank = number(
            "RANK",
            needed("RANK")?,
            |rank| *rank < world_size,
            &format!("0 to {}", world_size - 1),
        )?;
        let local_rank = match variable("LOCAL_RANK") {
            Some(value) => number(
                "LOCAL_RANK",
                value,
                |local| *local < world_size,
                &format!("0 to {}", world_size - 1),
            )?,
            None => rank,
        };
        let run = variable("TORCHELASTIC_RUN_ID").unwrap_or_default();
        let restart = variable("TORCHELASTIC_RESTART_COUNT").unwrap_or_default();
        if world_size == 1 && variable("MASTER_PORT").is_none() {
            return Ok(Self::alone());
        }
        Ok(Self {
            rank,
            local_rank,
            world_size,
            master_addr: needed("MASTER_ADDR")?,
            master_port: number(
                "MASTER_PORT",
                needed("MASTER_PORT")?,
                |port| *port > 0,
                "1 to 65535",
            )?,
            attempt: format!("{run}/{restart}"),
        })
    }

    /// As [`Self::read`], from the environment of this process.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub fn from_environment() -> Result<Self, MembershipError> {
        Self::read(|name| std::env::var(name).ok())
    }
}

fn number<T: FromStr>(
    name: &'static str,
    value: String,
    fits: impl Fn(&T) -> bool,
    wanted: &str,
) -> Result<T, MembershipError> {
    match value.parse() {
        Ok(number) if fits(&number) => Ok(number),
        _ => Err(MembershipError::Invalid {
            name,
            value,
            wanted: wanted.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Membership, MembershipError> {
        Membership::read(|name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const RANK_2: [(&str, &str); 6] = [
        ("RANK", "2"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", "4"),
        ("MASTER_ADDR", "node-0"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_RESTART_COUNT", "3"),
    ];

    #[test]
    fn torchruns_variables_are_understood() {
        let found = read(&RANK_2).unwrap();
        assert_eq!((found.rank, found.local_rank, found.world_size), (2, 0, 4));
        assert_eq!(
            (found.master_addr.as_str(), found.master_port),
            ("node-0", 29500)
        );
        assert_eq!(found.attempt, "/3");
    }

    #[test]
    fn without_variables_a_process_is_alone() {
        assert_eq!(read(&[]).unwrap(), Membership::alone());
        assert_eq!(
            read(&[("WORLD_SIZE", "1"), ("RANK", "0")]).unwrap(),
            Membership::alone()
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (name, value) in [
            ("RANK", "4"),
            ("RANK", "-1"),
            ("WORLD_SIZE", "0"),
            ("WORLD_SIZE", "four"),
            ("MASTER_PORT", "70000"),
            ("MASTER_PORT", "0"),
        ] {
            let variables = RANK_2.map(|(key, old)| (key, if key == name { value } else { old }));
            let error = read(&variables).unwrap_err();
            assert!(
                matches!(&error, MembershipError::Invalid { name: found, .. } if *found == name),
                "{error}"
            );
        }
        for name in ["RANK", "MASTER_ADDR", "MASTER_PORT"] {
            let variables = RANK_2.map(|(key, value)| (key, if key == name { "" } else { value }));
            assert_eq!(
                read(&variables).unwrap_err(),
                MembershipError::Missing { name }
            );
        }
    }
}
