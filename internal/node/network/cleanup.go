package network

import (
	"errors"

	"fairway.dev/fairway/internal/netns"
)

// Cleanup takes away all that any process has made under the prefix: links,
// routes (they go with the link), namespaces, the nftables table; and puts the
// sysctls recorded in cfg.StateDir back. It needs no running instance and does
// no harm where there is nothing.
func Cleanup(cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	machine := cfg.Machine
	if machine == nil {
		var err error
		if machine, err = netns.Current(); err != nil {
			return err
		}
		defer machine.Close()
	}
	mnl, err := newHandle(machine)
	if err != nil {
		return err
	}
	defer mnl.Close()
	var errs []error
	// Host mode's Pod links, and the machine's own end of the switch's cable.
	links, err := mnl.LinkList()
	errs = append(errs, err)
	for _, l := range links {
		name := l.Attrs().Name
		if name == cfg.Prefix || (l.Type() == "veth" && len(name) > len(cfg.Prefix) && name[:len(cfg.Prefix)+1] == cfg.Prefix+"-") {
			if err := mnl.LinkDel(l); err != nil && !isLinkGone(err) {
				errs = append(errs, err)
			}
		}
	}
	errs = append(errs, deleteAll(cfg.Prefix+"-"), deleteTable(machine, cfg.tableName()), deleteTable(machine, cfg.hostPortTable()))
	errs = append(errs, machine.Do(func() error {
		s, err := openSysctls(cfg.StateDir)
		if err != nil {
			return err
		}
		return s.restore()
	}))
	return errors.Join(errs...)
}

// deleteAll removes every namespace whose name starts with prefix.
func deleteAll(prefix string) error {
	names, err := netns.List(prefix)
	errs := []error{err}
	for _, name := range names {
		errs = append(errs, netns.Delete(name))
	}
	return errors.Join(errs...)
}
