# The Java compiler, and a program that it compiled. Most of their memory is the virtual machine's
# own heap, which does not come from the allocator.
packages="openjdk-17-jdk-headless"
binary=/usr/bin/java

prepare() {
    cat > Work.java <<'J'
import java.util.*;
import java.util.concurrent.*;
import java.util.stream.*;
import java.util.zip.*;

public class Work {
    record Row(int id, String name, double value) {}

    static long work(long seed, int rounds) throws Exception {
        var random = new Random(seed);
        long sum = 0;
        for (int round = 0; round < rounds; round++) {
            var rows = IntStream.range(0, 20000)
                .mapToObj(id -> new Row(id, Long.toString(random.nextLong(), 36), random.nextDouble()))
                .collect(Collectors.toList());
            rows.sort(Comparator.comparing(Row::name));
            var groups = rows.stream()
                .collect(Collectors.groupingBy(row -> row.name().charAt(1), TreeMap::new, Collectors.counting()));
            var text = groups + rows.stream().limit(3000).map(Row::toString).collect(Collectors.joining(";"));
            var deflater = new Deflater();
            deflater.setInput(text.getBytes());
            deflater.finish();
            var packed = new byte[text.length()];
            sum = sum * 31 + deflater.deflate(packed) + text.hashCode();
            deflater.end();
        }
        return sum;
    }

    public static void main(String[] arguments) throws Exception {
        int rounds = 3 * Integer.parseInt(arguments[0]);
        var pool = Executors.newFixedThreadPool(4);
        var answers = new ArrayList<Future<Long>>();
        for (long seed = 1; seed <= 4; seed++) {
            long own = seed;
            answers.add(pool.submit(() -> work(own, rounds)));
        }
        for (var answer : answers) System.out.println(answer.get());
        pool.shutdown();
    }
}
J
}

# Heaps have a fixed size, and code is compiled synchronously. Otherwise memory would depend on how
# busy the machine was.
run() {
    preloaded javac -J-Xbatch -J-XX:+UseSerialGC -J-Xms64m -J-Xmx64m Work.java
    preloaded java -Xbatch -XX:+UseSerialGC -Xms128m -Xmx128m Work "$SIZE"
}
