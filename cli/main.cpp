namespace tessera::cli {
int main_program(int argc, char** argv);
}

int main(int argc, char** argv) { return tessera::cli::main_program(argc, argv); }
