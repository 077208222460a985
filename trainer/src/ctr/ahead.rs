//! What is done before a step needs it: its rows are read, and its ids find their way.

use std::{
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread::Scope,
};

use super::{
    delay::Delay,
    retrieval::ItemFrequencies,
    step::{RoutedBatch, StepBatch},
    train::TrainError,
};
use crate::{
    collective::{ProcessGroup, split_evenly},
    sharding::Router,
    table::{Batches, Examples, TableError},
};

/// What a step learns from.
pub(super) struct Next {
    /// This rank's micro-batches.
    pub micro_batches: Vec<RoutedBatch>,
    /// Impression of the first of its rows.
    pub first_row: Option<String>,
}

/// The steps to come.
pub(super) struct Steps {
    /// Rows of each, of all ranks.
    pub sizes: Vec<usize>,
    /// Parts of each.
    pub micro_batches: usize,
    /// Steps whose rows are read ahead.
    pub prefetch_steps: usize,
    /// Of conversions, where they are learnt.
    pub delay: Option<Delay>,
    /// Of ads, where they are told apart.
    pub frequencies: Option<Arc<ItemFrequencies>>,
}

/// Two threads: one reads rows, some steps ahead; the other routes the next step's ids while this
/// step computes. Every rank asks for the same steps, and never for one more than the others:
/// else one would wait in vain.
pub(super) struct Ahead {
    ask: Sender<()>,
    take: Receiver<Result<Next, TrainError>>,
}

impl Ahead {
    /// Starts both.
    pub fn start<'scope, G: ProcessGroup>(
        scope: &'scope Scope<'scope, '_>,
        mut rows: Batches,
        steps: Steps,
        router: Router,
        ids: &'scope mut G,
    ) -> Self {
        let Steps {
            sizes,
            micro_batches,
            prefetch_steps,
            delay,
            frequencies,
        } = steps;
        let (read, to_route) = mpsc::sync_channel(prefetch_steps.max(1));
        scope.spawn(move || {
            for size in sizes {
                let parts = split_evenly(size, micro_batches).into_iter();
                let step: Result<Vec<Examples>, TableError> =
                    parts.map(|count| rows.take(count)).collect();
                let failed = step.is_err();
                if read.send(step).is_err() || failed {
                    return;
                }
            }
        });
        let (ask, asked) = mpsc::channel();
        let (give, take) = mpsc::channel();
        scope.spawn(move || {
            for () in asked {
                // It has as many steps as are asked for, unless it failed, which ended this too.
                let step = to_route.recv().expect("the reading thread");
                let batch = |part: Examples| StepBatch {
                    shown: frequencies.as_ref().map(|known| known.of(&part.features)),
                    ..StepBatch::of(part, delay.as_ref())
                };
                let next = step
                    .map_err(TrainError::from)
                    .and_then(|parts| route(parts, batch, &router, ids));
                let failed = next.is_err();
                if give.send(next).is_err() || failed {
                    return;
                }
            }
        });
        Self { ask, take }
    }

    /// Lets the next step's rows be routed.
    pub fn ask(&mut self) {
        // The thread ends after this handle; if it has failed, `take` says so.
        self.ask.send(()).ok();
    }

    /// What was asked for first.
    pub fn take(&mut self) -> Result<Next, TrainError> {
        // It gives something for everything it was asked, until it fails.
        self.take.recv().expect("the routing thread")
    }
}

fn route(
    parts: Vec<Examples>,
    batch: impl Fn(Examples) -> StepBatch,
    router: &Router,
    ids: &mut impl ProcessGroup,
) -> Result<Next, TrainError> {
    let first_row = parts.iter().find_map(|part| part.impression_ids.first());
    let first_row = first_row.cloned();
    let routed = parts.into_iter().map(|part| batch(part).route(router, ids));
    Ok(Next {
        micro_batches: routed.collect::<Result<_, _>>()?,
        first_row,
    })
}
