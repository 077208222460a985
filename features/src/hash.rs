//! The one hash: XXH64 with seed 42.
//!
//! Several values are hashed by chaining: the hash of one is the seed of the next. Both are what
//! Spark SQL's `xxhash64(a, b, …)` computes, so that engines at scale give the same ids.
//! Source: <https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>.

use xxhash_rust::xxh64::xxh64;

/// Seed of the first value.
pub const SEED: u64 = 42;

/// The id of a missing single value.
pub const MISSING_ID: u64 = 0;

/// Hash of a text's UTF-8 bytes.
pub fn hash_text(text: &str) -> u64 {
    chain_text(SEED, text)
}

/// Hash of an integer's eight little-endian bytes.
pub fn hash_integer(value: i64) -> u64 {
    chain_integer(SEED, value)
}

/// Adds a text to a chain of values.
pub fn chain_text(seed: u64, text: &str) -> u64 {
    xxh64(text.as_bytes(), seed)
}

/// Adds an integer to a chain of values.
pub fn chain_integer(seed: u64, value: i64) -> u64 {
    xxh64(&value.to_le_bytes(), seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_equal_those_of_spark() {
        // SELECT xxhash64('Spark'), xxhash64('a'), xxhash64(CAST(1 AS BIGINT)) in Spark 4;
        // reproduced with PyPI's xxhash: xxh64_intdigest(b, seed=42).
        assert_eq!(hash_text(""), HASH_EMPTY);
        assert_eq!(hash_text("a"), HASH_A);
        assert_eq!(hash_integer(1), HASH_ONE);
        assert_eq!(chain_text(hash_text("a"), "b"), HASH_A_B);
    }

    const HASH_EMPTY: u64 = 11_002_672_306_508_523_268;
    const HASH_A: u64 = 9_864_288_744_972_464_332;
    const HASH_A_B: u64 = 11_089_371_760_459_481_404;
    const HASH_ONE: u64 = 11_445_071_438_006_506_034;
}
