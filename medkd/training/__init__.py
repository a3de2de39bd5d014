"""One loop, on Lightning Fabric, that plays the turns of any method."""
