// Package deps holds the module's intended requirements while the parts that
// import them are being written. It is removed once they all do.
package deps
