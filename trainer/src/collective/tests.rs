//! Groups of threads over loopback.

use std::{
    io::Write,
    net::TcpStream,
    sync::{Arc, mpsc},
    thread,
};

use proptest::prelude::*;

use super::{
    conformance::conform,
    testing::{meet, members},
    *,
};

fn config(timeout_seconds: f64) -> CollectiveConfig {
    CollectiveConfig {
        timeout_seconds,
        ..Default::default()
    }
}

/// Runs `body` as every rank of a group.
fn on_ranks<T: Send>(
    world_size: usize,
    config: &CollectiveConfig,
    body: impl Fn(TcpGroup) -> T + Sync,
) -> Vec<T> {
    meet(world_size, config, |met| {
        body(TcpGroup::connect(&met, "dense").unwrap())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn random_programs_of_1_to_8_ranks_give_what_one_process_computes(
        world_size in 1usize..=8,
        seed in any::<u64>(),
    ) {
        for result in on_ranks(world_size, &config(60.0), |mut group| conform(&mut group, seed, 12, 60_000)) {
            if let Err(error) = result {
                return Err(TestCaseError::fail(format!("{error:?}")));
            }
        }
    }
}

#[test]
fn messages_beyond_all_buffers_arrive() {
    for world_size in [2, 3] {
        for result in on_ranks(world_size, &config(60.0), |mut group| {
            conform(&mut group, 5, 12, 3_000_000)
        }) {
            result.unwrap();
        }
    }
}

/// The ranks but the last act; the last waits until they are done, and then leaves.
fn without_the_last(
    timeout: f64,
    act: impl Fn(&mut TcpGroup) -> CollectiveError + Sync,
) -> Vec<CollectiveError> {
    let (done, wait) = mpsc::channel();
    let wait = std::sync::Mutex::new(wait);
    let found = on_ranks(4, &config(timeout), |mut group| {
        if group.rank() == 3 {
            let wait = wait.lock().unwrap();
            (0..3).for_each(|_| wait.recv().unwrap());
            return None;
        }
        let error = act(&mut group);
        done.send(()).unwrap();
        Some(error)
    });
    found.into_iter().flatten().collect()
}

#[test]
fn all_ranks_name_the_one_that_hangs() {
    let ring = |group: &mut TcpGroup| group.all_reduce(&mut vec![1.0; 100_000]).unwrap_err();
    let pairs = |group: &mut TcpGroup| group.barrier().unwrap_err();
    for errors in [without_the_last(0.3, ring), without_the_last(0.3, pairs)] {
        assert_eq!(errors.len(), 3);
        for error in errors {
            assert_eq!(error.rank(), Some(3), "{error}");
            assert!(error.to_string().contains("rank 3 "), "{error}");
        }
    }
}

#[test]
fn all_ranks_learn_that_one_is_lost() {
    let errors = on_ranks(4, &config(60.0), |mut group| {
        if group.rank() == 2 {
            return None;
        }
        Some(group.all_reduce(&mut vec![1.0; 100_000]).unwrap_err())
    });
    for error in errors.into_iter().flatten() {
        assert!(matches!(error, CollectiveError::Lost { .. }), "{error}");
    }
}

#[test]
fn ranks_that_are_not_at_the_same_place_are_told_apart() {
    type Act = fn(&mut TcpGroup) -> Result<(), CollectiveError>;
    let act = |mut group: TcpGroup, odd: Act| {
        let result = match group.rank() {
            0 => group.all_reduce(&mut vec![0.0; 50_000]),
            _ => odd(&mut group),
        };
        result.unwrap_err()
    };
    let odd: [Act; 3] = [
        |group| group.all_reduce(&mut vec![0.0; 50_001]),
        |group| group.barrier(),
        |group| group.broadcast(0, &mut vec![0u8; 5]),
    ];
    for odd in odd {
        let errors = on_ranks(2, &config(60.0), |group| act(group, odd));
        // One finds out; the other may only see it leave.
        let told = errors
            .iter()
            .find(|error| matches!(error, CollectiveError::OutOfStep { .. }));
        assert!(
            told.unwrap()
                .to_string()
                .contains("all-reduce 1 of length 200000"),
            "{errors:?}"
        );
    }
}

#[test]
fn short_sums_of_different_lengths_are_told_apart() {
    let errors = on_ranks(2, &config(60.0), |mut group| {
        let mut values = vec![0.0; 3 + group.rank()];
        group.all_reduce(&mut values).unwrap_err()
    });
    assert!(
        errors
            .iter()
            .any(|error| matches!(error, CollectiveError::OutOfStep { .. }))
    );
}

#[test]
fn a_group_that_failed_stays_failed() {
    let errors = on_ranks(2, &config(60.0), |mut group| {
        if group.rank() == 1 {
            return None;
        }
        group.barrier().unwrap_err();
        group.barrier().err()
    });
    assert!(matches!(errors[0], Some(CollectiveError::Broken { .. })));
}

#[test]
fn a_sum_costs_what_the_ring_must_and_hardly_more() {
    let values = 100_000;
    for (world_size, least) in [(2, 1.0), (4, 1.5)] {
        for traffic in on_ranks(world_size, &config(60.0), |mut group| {
            group.all_reduce(&mut vec![1.0; values]).unwrap();
            group.traffic()
        }) {
            let least = least * values as f64 * 4.0;
            let found = traffic.sent_bytes as f64;
            assert!(
                (least..least * 1.001).contains(&found),
                "{found} against {least}"
            );
        }
    }
}

#[test]
fn groups_of_two_roles_do_not_mix() {
    meet(2, &config(60.0), |met| {
        let mut dense = TcpGroup::connect(&met, "dense").unwrap();
        let mut rows = TcpGroup::connect(&met, "rows").unwrap();
        // The two ranks use them in opposite order.
        let (mut a, mut b) = (vec![1.0f32], vec![10.0f32]);
        if dense.rank() == 0 {
            let other = thread::spawn(move || rows.all_reduce(&mut b).map(|()| b));
            dense.all_reduce(&mut a).unwrap();
            b = other.join().unwrap().unwrap();
        } else {
            rows.all_reduce(&mut b).unwrap();
            dense.all_reduce(&mut a).unwrap();
        }
        assert_eq!((a, b), (vec![2.0], vec![20.0]));
    });
}

/// Joins as rank 1 of 2 with a change, beside an ordinary rank 0; returns both errors.
fn join_wrongly(
    change: impl FnOnce(&mut Membership, &mut CollectiveConfig, &mut String),
) -> (JoinError, JoinError) {
    let (listener, mut members) = members(2);
    let (mut second, first) = (members.pop().unwrap(), members.pop().unwrap());
    let mut short = config(60.0);
    short.join_timeout_seconds = 1.0;
    let (mut theirs, mut digest) = (short.clone(), "digest".to_owned());
    change(&mut second, &mut theirs, &mut digest);
    thread::scope(|scope| {
        let ours =
            scope.spawn(|| Rendezvous::enter(first, &short, "digest", Some(listener)).unwrap_err());
        let other = Rendezvous::enter(second, &theirs, &digest, None).unwrap_err();
        (ours.join().unwrap(), other)
    })
}

#[test]
fn a_rank_with_another_configuration_is_refused_and_all_are_told() {
    let (first, second) = join_wrongly(|_, _, digest| *digest = "other".into());
    assert!(
        matches!(&first, JoinError::Spoilt { reason } if reason.contains("rank 1 has configuration other")),
        "{first}"
    );
    assert!(
        matches!(
            second,
            JoinError::Greeting {
                rank: 0,
                source: GreetingError::Config { .. }
            }
        ),
        "{second}"
    );
}

#[test]
fn a_rank_of_another_attempt_is_only_turned_away() {
    let (first, second) = join_wrongly(|member, _, _| member.attempt = "test/1".into());
    assert!(
        matches!(&first, JoinError::Missing { missing, .. } if *missing == [1]),
        "{first}"
    );
    assert!(
        matches!(
            second,
            JoinError::Greeting {
                source: GreetingError::Attempt { .. },
                ..
            }
        ),
        "{second}"
    );
}

#[test]
fn a_rank_without_the_secret_is_only_turned_away() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all(b"open sesame\n").unwrap();
    let (first, second) = join_wrongly(|_, theirs, _| theirs.secret_file = file.path().to_owned());
    assert!(
        matches!(&first, JoinError::Missing { missing, .. } if *missing == [1]),
        "{first}"
    );
    assert!(
        matches!(
            second,
            JoinError::Greeting {
                source: GreetingError::Secret { rank: 0 },
                ..
            }
        ),
        "{second}"
    );
}

#[test]
fn ranks_that_share_a_secret_file_work_together() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all(b"open sesame\n").unwrap();
    let mut config = config(60.0);
    config.secret_file = file.path().to_owned();
    on_ranks(3, &config, |mut group| group.barrier().unwrap());
}

#[test]
fn strangers_do_not_keep_the_ranks_from_each_other() {
    let (listener, members) = members(2);
    let address = listener.local_addr().unwrap();
    let mut stranger = TcpStream::connect(address).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _silent = TcpStream::connect(address).unwrap();
    let mut listener = Some(listener);
    thread::scope(|scope| {
        for member in members {
            let listener = listener.take();
            scope.spawn(move || {
                let met = Rendezvous::enter(member, &config(60.0), "digest", listener).unwrap();
                TcpGroup::connect(&met, "dense").unwrap().barrier().unwrap();
            });
        }
    });
}

#[test]
fn a_rank_that_never_comes_is_named() {
    let (listener, mut members) = members(3);
    members.pop();
    let mut config = config(60.0);
    config.join_timeout_seconds = 0.3;
    let config = Arc::new(config);
    let mut listener = Some(listener);
    thread::scope(|scope| {
        for member in members {
            let (listener, config) = (listener.take(), Arc::clone(&config));
            scope.spawn(move || {
                let error = Rendezvous::enter(member, &config, "digest", listener).unwrap_err();
                assert!(
                    matches!(&error, JoinError::Missing { missing, .. } if *missing == [2]),
                    "{error}"
                );
            });
        }
    });
}
