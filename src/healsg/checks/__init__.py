"""The checks of a configuration, from source alone: what constructors take, which targets may be called."""
