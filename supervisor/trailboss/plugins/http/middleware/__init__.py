"""The middleware that comes with Trailboss, one file each; `chain` puts what is configured around the workers."""
