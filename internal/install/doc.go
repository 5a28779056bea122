// Package install puts the programs and the runtime handler on a node, and takes them off again.
//
// The order of its steps is its promise: at no instant, also when it is killed or the disk is full, does the node have a
// configuration with which containerd cannot start. Files are replaced by rename(2) only. A new configuration is dumped by
// the node's own containerd before it goes live, and has to differ from the old one in the handler only. While it is not yet
// known that containerd runs with it, a journal beside it says how to go back; going back needs renames and no space on the disk.
//
// containerd 2.x merges the tables of an imported file into the main one, so there the handler is a file of its own.
// containerd 1.x replaces the whole table of a plugin by that of the imported file (services/server/config/config.go,
// mergeConfig): an import would take away all other handlers and the settings of CRI. There the handler is a marked block at
// the end of the main file.
package install
