import org.apache.flink.table.functions.ScalarFunction;

/** The scalar product of two vectors of one length. */
public class MarqueeDot extends ScalarFunction {
    public Double eval(Double[] left, Double[] right) {
        if (left == null || right == null || left.length != right.length) {
            return null;
        }
        double sum = 0;
        for (int i = 0; i < left.length; i++) {
            sum += left[i] * right[i];
        }
        return sum;
    }
}
