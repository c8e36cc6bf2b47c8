"""What the entries share: a job's config and folder, how it runs, alone or among a sweep's, and how it goes on."""
