// Package config reads and checks thinsnap's configuration file: its keys, their defaults and their
// allowed values. It accesses no other file: the users of a value check that its device or
// directory exists.
package config
