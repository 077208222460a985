//! One definition of every feature: spec, transforms, windowed aggregates, online store
