# Python's own tests of 38 modules. A check adds the tests of threads and of communicating
# processes, which wait more than they work and are therefore not measured.
packages="python3 libpython3.11-testsuite"
binary=/usr/bin/python3.11

modules="test_json test_gc test_dict test_list test_set test_unicode test_re test_pickle test_collections test_itertools
    test_functools test_array test_bytes test_deque test_heapq test_sort test_struct test_zlib test_bz2 test_hashlib test_decimal
    test_datetime test_ast test_compile test_grammar test_generators test_coroutines test_contextlib test_memoryview test_mmap
    test_csv test_xml_etree test_thread test_memoryio test_string test_long test_copy test_traceback"

prepare() { :; }

# Extracts the outcome from the report, without times.
outcome() { grep -aE '^(All|Result|Tests result)|fail|warning' | sort -u; }

run() {
    export PYTHONHASHSEED=7
    preloaded python3.11 -m test $modules | outcome
    if [ "$SIZE" = 1 ]; then
        preloaded python3.11 -m test test_threading | outcome
        preloaded python3.11 -m test test_multiprocessing_fork -m 'WithProcessesTest[BHLQS]*' | outcome
    fi
}
