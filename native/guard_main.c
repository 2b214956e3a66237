/* The program trailboss-guard; guard.h says what it does. Usage: trailboss-guard INSTANCE. */
#include "guard.h"

#define HUNT_MILLISECONDS_MAX 5000

int main(int argument_count, char **arguments)
{
    static struct trailboss_guard guard;

    return argument_count == 2 ? trailboss_guard_run(&guard, arguments[1], "/proc", HUNT_MILLISECONDS_MAX) : 2;
}
