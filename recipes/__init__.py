"""Programs that train, evaluate, export and time Dynamic Slimmable Networks."""
