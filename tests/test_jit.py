from weightbank.jit import jit


def test_a_loop_compiles_where_no_cache_can_be_written() -> None:
    namespace: dict = {}
    exec("def double(x):\n    return 2 * x", namespace)  # a function without a file has no place for a cache
    assert jit(namespace["double"])(21) == 42
