import org.apache.flink.table.functions.ScalarFunction;

/** A text as the next link of a chain of hashes: XXH64 of its UTF-8 bytes. */
public class MarqueeHashText extends ScalarFunction {
    public Long eval(Long seed, String text) {
        return XxHash64.hash(text == null ? new byte[0] : XxHash64.utf8(text), seed);
    }
}
