"""The functional core. Pure: no await, clock, random, logging, file, socket or process; an import contract keeps it so."""
