# The two commands: make demo, make test.
.PHONY: help demo test build check-full bench-check format
.DEFAULT_GOAL := help

help: ## say what can be typed
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile | expand -t 20

demo: build ## make a small shop, train six models on it, compare them, recommend
	@build/tessera demo -o demo-shop

build: ## install what is missing, leave the program at build/tessera
	@tools/setup
	@tools/build tessera_cli

test: ## build and run everything that CI runs
	@tools/setup --web
	@tools/build
	@tools/test

check-full: ## sanitizers, clang-tidy, fuzzing, slow tests, a build without precompiled header
	@tools/setup --dev
	@tools/check_full

bench-check: ## count the instructions of the hottest kernels against bench/instructions.tsv
	@tools/setup --bench
	@tools/build bench_kernels
	@bench/check

format: ## format the sources
	@tools/setup
	@tools/format
