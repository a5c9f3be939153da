"""The pure core: decides who starts when. Standard library only, and no clock, sleep, log or chance."""
