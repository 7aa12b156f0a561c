//! Any text as a folder of manifests: read into objects, the objects into a model, the model into records that the
//! dataplane takes.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_control::allocate::{Allocator, Ranges};
use sluice_control::compile::{Numbers, Settings, compile};
use sluice_control::endpoints;
use sluice_control::manifest;
use sluice_control::model::Model;
use sluice_control::problem::SourceText;
use sluice_control::source::Event;
use sluice_dataplane::index::Generation;
use sluice_dataplane::tables::{TableLimits, TablesBuilder};

pub(crate) fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    let contents = manifest::read(&Arc::new(SourceText {
        path: "f.yaml".into(),
        text,
    }));
    for problem in &contents.problems {
        assert!(!problem.with_source(false).is_empty());
    }
    let objects = contents
        .objects
        .into_iter()
        .map(|object| Event::Apply(Box::new(object)));
    let events = std::iter::once(Event::ResetBegin)
        .chain(objects)
        .chain([Event::ResetEnd]);
    let ranges = Ranges {
        services: ["10.96.0.0/16", "fd00:96::/112"]
            .map(|range| range.parse().unwrap())
            .to_vec(),
        ..Ranges::default()
    };
    let service_ranges = ranges.services.clone();
    let mut model = Model::new(Allocator::new(ranges, BTreeMap::new()));
    model.apply(events.collect());
    for problem in model.problems() {
        assert!(!problem.with_source(false).is_empty());
    }
    let settings = Settings {
        service_ranges,
        ..Settings::default()
    };
    let compiled = compile(&model, &endpoints::slices(&model), &settings, &Numbers::default());
    let refused = TablesBuilder::new(TableLimits::default())
        .apply(Generation(1), &[], &compiled.records)
        .err();
    // Names in front of users: what the API lets pass but the dataplane does not would be an update that never happens.
    assert_eq!(refused, None, "what control compiles, the dataplane takes");
}
