//! The ad server: features, retrieval, pre-score, rank, auction behind gRPC
