//! One safetensors file, streamed out with its digest.
//!
//! Source: the format's description in the `safetensors` repository: a length (u64, little
//! endian), a JSON header of that length, and the tensors' bytes. The crate's own writer wants
//! all tensors in one further buffer; here they go out as they lie.

use bytemuck::Pod;
use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart, path::Path as Key};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use super::CheckpointError;

/// Parts of an upload; S3 wants 5 MiB or more.
const PART_BYTES: usize = 8 << 20;

/// What a thread copies at once.
const COPIED_BYTES: usize = 1 << 20;

/// A tensor on its way to a file.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Its name.
    pub name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl Piece {
    /// Copies values.
    ///
    /// # Shapes
    /// - `values`: the product of `shape`
    pub fn new<T: Pod>(name: String, dtype: Dtype, shape: &[usize], values: &[T]) -> Self {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        Self {
            name,
            dtype,
            shape: shape.to_vec(),
            bytes: copy(bytes),
        }
    }

    /// Copies a vector of f32.
    pub fn vector(name: &str, values: &[f32]) -> Self {
        Self::new(name.to_owned(), Dtype::F32, &[values.len()], values)
    }
}

/// Copies on all threads: most of the time goes into getting fresh memory from the system.
fn copy(bytes: &[u8]) -> Bytes {
    let mut copied = vec![0; bytes.len()];
    let parts = copied.par_chunks_mut(COPIED_BYTES);
    let copy = |(to, from): (&mut [u8], &[u8])| to.copy_from_slice(from);
    parts.zip(bytes.par_chunks(COPIED_BYTES)).for_each(copy);
    Bytes::from(copied)
}

/// Writes a file; returns its length and digest.
pub(super) async fn write(
    store: &dyn ObjectStore,
    key: &Key,
    pieces: Vec<Piece>,
) -> Result<(u64, String), CheckpointError> {
    let failed = |source| CheckpointError::Store {
        action: "writing checkpoint file",
        key: key.to_string(),
        source,
    };
    let upload = store.put_multipart(key).await.map_err(failed)?;
    let mut writer = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
    let (mut hasher, mut length) = (Sha256::new(), 0);
    let header = Bytes::from(header(&pieces));
    for bytes in std::iter::once(header).chain(pieces.into_iter().map(|piece| piece.bytes)) {
        hasher.update(&bytes);
        length += bytes.len() as u64;
        // At most two parts wait, so that a slow store does not fill the memory.
        writer.wait_for_capacity(2).await.map_err(failed)?;
        writer.put(bytes);
    }
    writer.finish().await.map_err(failed)?;
    Ok((length, hex(hasher)))
}

/// Length and header of the file.
fn header(pieces: &[Piece]) -> Vec<u8> {
    let mut at = 0;
    let entries = pieces.iter().map(|piece| {
        let start = at;
        at += piece.bytes.len();
        let entry = serde_json::json!({
            "dtype": piece.dtype,
            "shape": piece.shape,
            "data_offsets": [start, at],
        });
        (piece.name.clone(), entry)
    });
    let entries: serde_json::Map<_, _> = entries.collect();
    let mut json = serde_json::Value::Object(entries).to_string().into_bytes();
    // Tensors begin at a multiple of eight.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    header
}

/// Reads a file that must have a digest.
pub(super) async fn read(
    store: &dyn ObjectStore,
    key: &Key,
    sha256: &str,
) -> Result<Bytes, CheckpointError> {
    let failed = |source| CheckpointError::Store {
        action: "reading checkpoint file",
        key: key.to_string(),
        source,
    };
    let bytes = store
        .get(key)
        .await
        .map_err(failed)?
        .bytes()
        .await
        .map_err(failed)?;
    let damaged = |problem| CheckpointError::Damaged {
        key: key.to_string(),
        problem,
    };
    let found = registry::Digest::of(&bytes);
    if found.as_str() != sha256 {
        return Err(damaged(format!(
            "its SHA-256 is {found}, the manifest says {sha256}"
        )));
    }
    SafeTensors::deserialize(&bytes).map_err(|error| damaged(error.to_string()))?;
    Ok(bytes)
}

fn hex(hasher: Sha256) -> String {
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
