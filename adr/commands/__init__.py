"""The commands of adr, by what they are about: one function each, see `adr.commands.base`."""
