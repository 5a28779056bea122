# PID 1 of a container for TestRealPrograms; doc.go says what it does.
use strict;
use warnings;

$| = 1;

sub report {
    my ($good, $what) = @_;
    print(($good ? 'PASS' : 'FAIL') . " $what\n");
}

sub leave_orphans {
    for my $code (@_) {
        my $status = system('sh', '-c', "(sleep 0.3; exit $code) & exit 0");
        report($status == 0, "helper that leaves an orphan: wait status $status, want 0");
    }
}

leave_orphans(21, 22, 23, 24);
my @own;
for my $code (11, 12, 13, 14, 15) {
    my $pid = fork() // die "fork: $!";
    if ($pid == 0) {
        exec('sh', '-c', "exit $code") or die "exec: $!";
    }
    push @own, [$code, $pid];
}
sleep 3;
for (@own) {
    my ($code, $pid) = @$_;
    my $got = waitpid($pid, 0);
    my $status = $?;
    report($got == $pid && $status == $code << 8, "own helper: waitpid($pid) returns $got, wait status $status, want exit code $code");
}
leave_orphans(31, 32, 33, 34);
print "DONE\n";
sleep 3600 while 1;
