import org.apache.flink.table.functions.ScalarFunction;

/** An integer as the next link of a chain of hashes: XXH64 of its eight bytes, the least one first. */
public class MarqueeHashInteger extends ScalarFunction {
    public Long eval(Long seed, Long number) {
        return XxHash64.hash(number == null ? new byte[0] : XxHash64.bytes(number), seed);
    }
}
