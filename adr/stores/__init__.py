"""Where files lie: one store per backend, all behind `adr.stores.base.ObjectStore`."""
