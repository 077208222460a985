//! Contracts between processes: Protobuf events, the ad service, the event log
