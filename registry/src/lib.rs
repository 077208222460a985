//! Artifacts by content digest, with lineage and metrics; channels that say what is live
