//! Networks, losses, metrics and the compiled pre-scorer, on any burn backend
