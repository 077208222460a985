//! Compiles the Protobuf contracts without a system `protoc`.

use std::{env, fs, path::PathBuf};

use prost::Message;

const PROTOS: [&str; 2] = ["marquee/events/v1/events.proto", "marquee/ads/v1/ads.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    let with_services = env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(with_services)
        .build_server(with_services)
        .compile_fds(descriptors)?;
    Ok(())
}
