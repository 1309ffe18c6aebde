package service

const roleEnv = "FAIRWAY_SERVICE_TEST_ROLE"

func runRole(role string) int { return 0 }
