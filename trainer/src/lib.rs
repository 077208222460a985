//! Trains CTR, visual and pre-score models: sharded tables, training loop, evaluation
