"""Running a real server around a packaged classifier."""
