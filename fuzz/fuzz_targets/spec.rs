//! Any text is a feature spec or an error; a spec compiles, and gives a row of its columns for a request of
//! which nothing is known.

#![no_main]

use features::{Aggregates, FeatureBatch, FeatureSet, FeatureSpec, Facts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(spec) = FeatureSpec::parse(text, "fuzz") else {
        return;
    };
    let digest = spec.digest().to_owned();
    let set = FeatureSet::compile(spec);
    assert_eq!(set.digest(), digest);
    let (request, ad) = (set.bind_request(&Facts::new()), set.bind_ad(&Facts::new()));
    let mut row = FeatureBatch::new(set.schema());
    set.evaluate(&request, &[&ad], &Aggregates::default(), 0, &mut row);
    assert_eq!(row.dense.len(), set.schema().dense.len());
    assert!(row.dense.iter().all(|value| value.is_finite()), "{:?}", row.dense);
});
