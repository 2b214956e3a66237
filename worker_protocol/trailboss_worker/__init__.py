"""What Python workers of Trailboss (and of RoadRunner) import; standard library only."""
