//! End-to-end and fault tests over the real programs
