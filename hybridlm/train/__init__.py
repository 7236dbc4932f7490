"""Training: text as token bins, a LightningModule, callbacks that never lose a run, and the command line."""
