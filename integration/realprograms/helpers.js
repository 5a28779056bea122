// PID 1 of a container for TestRealPrograms; doc.go says what it does.
'use strict';
const { spawn } = require('child_process');

const report = (good, what) => console.log(`${good ? 'PASS' : 'FAIL'} ${what}`);
const shell = (script) => spawn('sh', ['-c', script], { stdio: 'inherit' });

async function leaveOrphans(codes) {
  for (const code of codes) {
    const helper = shell(`(sleep 0.3; exit ${code}) & exit 0`);
    const status = await new Promise((resolve) => helper.on('exit', resolve));
    report(status === 0, `helper that leaves an orphan: ${status}, want 0`);
  }
}

async function main() {
  await leaveOrphans([21, 22, 23, 24]);
  // The event loop waits for each at its SIGCHLD; here the program only asks later for what that has found.
  const own = [11, 12, 13, 14, 15].map((code) => ({ code, helper: shell(`exit ${code}`) }));
  await new Promise((resolve) => setTimeout(resolve, 3000));
  for (const { code, helper } of own) {
    report(helper.exitCode === code, `own helper: ${helper.exitCode}, want ${code}`);
  }
  await leaveOrphans([31, 32, 33, 34]);
  console.log('DONE');
  setInterval(() => {}, 3600 * 1000); // a server's event loop with nothing to do
}

main();
