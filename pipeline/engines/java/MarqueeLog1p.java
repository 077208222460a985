import org.apache.flink.table.functions.ScalarFunction;

/** The logarithm of one plus a number, exact for small ones too. */
public class MarqueeLog1p extends ScalarFunction {
    public Double eval(Double x) {
        return x == null ? null : (Double) Math.log1p(x);
    }
}
