import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;

/**
 * XXH64 after its specification (github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md): the hash that
 * Spark has as xxhash64 and the crate `features` as `hash`.
 */
final class XxHash64 {
    private static final long P1 = 0x9E3779B185EBCA87L;
    private static final long P2 = 0xC2B2AE3D27D4EB4FL;
    private static final long P3 = 0x165667B19E3779F9L;
    private static final long P4 = 0x85EBCA77C2B2AE63L;
    private static final long P5 = 0x27D4EB2F165667C5L;

    private XxHash64() {}

    static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static byte[] bytes(long number) {
        return ByteBuffer.allocate(Long.BYTES).order(ByteOrder.LITTLE_ENDIAN).putLong(number).array();
    }

    static long hash(byte[] input, long seed) {
        ByteBuffer bytes = ByteBuffer.wrap(input).order(ByteOrder.LITTLE_ENDIAN);
        long hash = bytes.remaining() < 32 ? seed + P5 : stripes(bytes, seed);
        hash += input.length;
        while (bytes.remaining() >= 8) {
            hash = Long.rotateLeft(hash ^ round(0, bytes.getLong()), 27) * P1 + P4;
        }
        if (bytes.remaining() >= 4) {
            hash = Long.rotateLeft(hash ^ Integer.toUnsignedLong(bytes.getInt()) * P1, 23) * P2 + P3;
        }
        while (bytes.hasRemaining()) {
            hash = Long.rotateLeft(hash ^ Byte.toUnsignedLong(bytes.get()) * P5, 11) * P1;
        }
        hash = (hash ^ hash >>> 33) * P2;
        hash = (hash ^ hash >>> 29) * P3;
        return hash ^ hash >>> 32;
    }

    private static long round(long lane, long input) {
        return Long.rotateLeft(lane + input * P2, 31) * P1;
    }

    /** Four lanes over stripes of 32 bytes. */
    private static long stripes(ByteBuffer bytes, long seed) {
        long[] lanes = {seed + P1 + P2, seed + P2, seed, seed - P1};
        while (bytes.remaining() >= 32) {
            for (int lane = 0; lane < 4; lane++) {
                lanes[lane] = round(lanes[lane], bytes.getLong());
            }
        }
        int[] turns = {1, 7, 12, 18};
        long hash = 0;
        for (int lane = 0; lane < 4; lane++) {
            hash += Long.rotateLeft(lanes[lane], turns[lane]);
        }
        for (long lane : lanes) {
            hash = (hash ^ round(0, lane)) * P1 + P4;
        }
        return hash;
    }
}
