# PID 1 of a container for TestRealPrograms; doc.go says what it does. For bash and dash alike.

report() {
	if [ "$1" = "$2" ]; then
		echo "PASS $3: $1"
	else
		echo "FAIL $3: $1, want $2"
	fi
}

leave_orphans() {
	for code; do
		sh -c "(sleep 0.3; exit $code) & exit 0"
		report $? 0 'helper that leaves an orphan'
	done
}

leave_orphans 21 22 23 24
own=
for code in 11 12 13 14 15; do
	sh -c "exit $code" &
	own="$own $code:$!"
done
sleep 3
for helper in $own; do
	wait "${helper#*:}"
	report $? "${helper%:*}" 'own helper'
done
leave_orphans 31 32 33 34
echo DONE
while :; do
	sleep 1
done
