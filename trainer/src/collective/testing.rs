//! Ranks as threads of one process, for tests.

use std::{net::TcpListener, sync::Arc, thread};

use super::{CollectiveConfig, Membership, Rendezvous};

/// A port for the rendezvous of `world_size` threads, and what each of them needs to join.
pub(crate) fn members(world_size: usize) -> (TcpListener, Vec<Membership>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let master_port = listener.local_addr().unwrap().port();
    let member = |rank| Membership {
        rank,
        local_rank: rank,
        world_size,
        master_addr: "127.0.0.1".into(),
        master_port,
        attempt: "test/0".into(),
    };
    (listener, (0..world_size).map(member).collect())
}

/// Runs `body` as every rank of a run, and returns what each returned.
pub(crate) fn meet<T: Send>(
    world_size: usize,
    config: &CollectiveConfig,
    body: impl Fn(Arc<Rendezvous>) -> T + Sync,
) -> Vec<T> {
    let (listener, members) = members(world_size);
    let mut listener = Some(listener);
    thread::scope(|scope| {
        let ranks: Vec<_> = members
            .into_iter()
            .map(|member| {
                let (listener, body) = (listener.take(), &body);
                scope.spawn(move || {
                    body(Rendezvous::enter(member, config, "digest", listener).unwrap())
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}
