#!/bin/sh
# Before the programs go, the handler has to: containerd would start no pod of it. Fails while containers of the runtime are running.
set -e
case "$1" in
remove | 0) ;; # dpkg, rpm
*) exit 0 ;;   # an upgrade
esac
etc="${DPKG_ROOT:-}/etc/containerd"
if grep -qs 'reaper-install' "$etc/config.toml" "$etc/conf.d/reaper.toml"; then
	"${DPKG_ROOT:-}/usr/bin/reaper-install" uninstall
fi
if [ -z "${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then
	systemctl disable --now reaper-exporter.service
fi
