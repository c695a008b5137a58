#include <unistd.h>

namespace tessera::cli {
int main_program(int argc, char** argv);
}

// Everything is written and closed by now; libtorch would take .1 s to take down its operators.
int main(int argc, char** argv) { _exit(tessera::cli::main_program(argc, argv)); }
