# PID 1 of a container for TestRealPrograms; doc.go says what it does.
import subprocess
import time


def report(good, what):
    print("PASS" if good else "FAIL", what, flush=True)


def leave_orphans(codes):
    for code in codes:
        status = subprocess.run(["sh", "-c", f"(sleep 0.3; exit {code}) & exit 0"]).returncode
        report(status == 0, f"helper that leaves an orphan: {status}, want 0")


leave_orphans([21, 22, 23, 24])
own = {code: subprocess.Popen(["sh", "-c", f"exit {code}"]) for code in [11, 12, 13, 14, 15]}
time.sleep(3)
for code, helper in own.items():
    status = helper.wait()
    report(status == code, f"own helper: {status}, want {code}")
leave_orphans([31, 32, 33, 34])
print("DONE", flush=True)
while True:
    time.sleep(3600)
