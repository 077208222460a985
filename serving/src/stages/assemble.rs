//! Facts of the request, and the aggregates about its user, scene and context.

use std::time::Instant;

use features::{RequestFacts, facts::request_facts, online::OnlineError};
use wire::events::Context;

use super::{Scope, Staged};
use crate::{
    degradation::{Fallback, Why},
    store::{States, Store, StoreError},
};

/// What is known before any ad is looked at.
#[derive(Debug)]
pub struct Assembled {
    /// The request's context; a missing genre is filled in from the catalogue.
    pub context: Context,
    /// The facts, bound to the bundle's features; absent without features.
    pub facts: Option<RequestFacts>,
    /// Aggregates read so far.
    pub states: States,
    /// Whether the store takes part: once it was late, it is asked no more.
    pub store_is_up: bool,
}

/// Gathers facts and aggregates. Without store, or with one that is late or failing, those that
/// are not known take their defaults.
pub fn assemble(scope: &Scope<'_>, until: Instant) -> Staged<Assembled> {
    let context = complete(scope);
    let request = scope.request;
    let scene = scope.bundle.ads.scenes.get(&context.scene_id);
    let facts = scope.bundle.features.as_ref().map(|features| {
        features.bind_request(&request_facts(
            &request.subject,
            request.age_band,
            &context,
            scene,
            request.time_us,
        ))
    });
    let mut assembled = Assembled {
        context,
        facts,
        states: States::default(),
        store_is_up: false,
    };
    let fallback = read(scope, &mut assembled, until).err();
    Staged {
        output: assembled,
        fallbacks: fallback
            .map(Fallback::DefaultFeatures)
            .into_iter()
            .collect(),
    }
}

fn read(scope: &Scope<'_>, assembled: &mut Assembled, until: Instant) -> Result<(), Why> {
    let (Some(features), Some(facts)) = (&scope.bundle.features, &assembled.facts) else {
        return Err(Why::Missing);
    };
    let store: &Store = scope.store.ok_or(Why::Missing)?;
    // Whatever happens below, what is kept of the ads and what was read until then still counts.
    assembled.states = States::of(store);
    let keys = store.keys_ahead(features, facts);
    let read = assembled.states.read(store, &keys, until);
    // One that fails in part has more to tell, and one that is gone says so at once.
    let is_late = matches!(&read, Err(StoreError::Online(OnlineError::Late { .. })));
    assembled.store_is_up = !is_late;
    read.map_err(why)
}

/// Why the store could not be read.
pub fn why(error: StoreError) -> Why {
    match error {
        StoreError::Online(OnlineError::Late { .. }) => Why::Late,
        error => Why::Failed(format!("{:#}", anyhow::Error::from(error))),
    }
}

/// The context with its genre: the client's word, else the scene's, else the experience's.
fn complete(scope: &Scope<'_>) -> Context {
    let mut context = scope.request.context.clone();
    let ads = &scope.bundle.ads;
    if context.genre.is_empty() {
        let of_scene = ads.scenes.get(&context.scene_id).map(|scene| &scene.genre);
        let of_experience = ads
            .experiences
            .get(&context.experience_id)
            .map(|experience| &experience.genre);
        if let Some(genre) = of_scene.or(of_experience) {
            context.genre.clone_from(genre);
        }
    }
    context
}
