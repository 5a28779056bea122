// PID 1 of a container for TestRealPrograms; doc.go says what it does.
public class Helpers {
    static final int[] OWN = {11, 12, 13, 14, 15};
    static final int[] EARLY = {21, 22, 23, 24};
    static final int[] LATER = {31, 32, 33, 34};

    static void report(boolean good, String what) {
        System.out.println((good ? "PASS " : "FAIL ") + what);
    }

    static Process shell(String script) throws Exception {
        return new ProcessBuilder("sh", "-c", script).inheritIO().start();
    }

    static void leaveOrphans(int[] codes) throws Exception {
        for (int code : codes) {
            int status = shell("(sleep 0.3; exit " + code + ") & exit 0").waitFor();
            report(status == 0, "helper that leaves an orphan: " + status + ", want 0");
        }
    }

    public static void main(String[] args) throws Exception {
        leaveOrphans(EARLY);
        // A thread of the library waits for each at once; here the program only asks later for what that has found.
        Process[] own = new Process[OWN.length];
        for (int i = 0; i < own.length; i++) {
            own[i] = shell("exit " + OWN[i]);
        }
        Thread.sleep(3000);
        for (int i = 0; i < own.length; i++) {
            int status = own[i].waitFor();
            report(status == OWN[i], "own helper: " + status + ", want " + OWN[i]);
        }
        leaveOrphans(LATER);
        System.out.println("DONE");
        while (true) {
            Thread.sleep(3600 * 1000);
        }
    }
}
