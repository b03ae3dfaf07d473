//! The table: fields, what they take and what is stored of it, what they refuse and how.

/// One field.
pub struct Case {
    pub name: &'static str,
    /// Its keys in the config, but the name.
    pub field: &'static str,
    /// What is sent, and what ClickHouse returns.
    pub good: &'static [(&'static str, &'static str)],
    /// What is sent, the code, and a part of the message.
    pub bad: &'static [(&'static str, &'static str, &'static str)],
    /// What is stored where nothing is sent, if not ClickHouse's own default.
    pub default: Option<&'static str>,
}

const fn case(
    name: &'static str,
    field: &'static str,
    good: &'static [(&'static str, &'static str)],
    bad: &'static [(&'static str, &'static str, &'static str)],
) -> Case {
    Case {
        name,
        field,
        good,
        bad,
        default: None,
    }
}

const fn with_default(mut case: Case, default: &'static str) -> Case {
    case.default = Some(default);
    case
}

/// All of them.
pub const FIELDS: &[Case] = &[
    case(
        "i8",
        "type: int8",
        &[("-128", "-128"), ("127", "127"), ("1.0", "1")],
        &[
            ("128", "out_of_range", "-128 to 127"),
            ("-129", "out_of_range", ""),
            ("1.5", "wrong_type", "not whole"),
            ("\"1\"", "wrong_type", ""),
        ],
    ),
    case(
        "u64",
        "type: uint64",
        &[
            ("18446744073709551615", "\"18446744073709551615\""),
            ("\"18446744073709551615\"", "\"18446744073709551615\""),
            ("9007199254740993", "\"9007199254740993\""),
        ],
        &[
            ("\"18446744073709551616\"", "out_of_range", "18446744073709551615"),
            ("-1", "out_of_range", ""),
            ("true", "wrong_type", ""),
        ],
    ),
    case(
        "i64",
        "type: nullable(int64)",
        &[
            ("-9223372036854775808", "\"-9223372036854775808\""),
            ("9223372036854775807", "\"9223372036854775807\""),
            ("null", "null"),
        ],
        &[("9223372036854775808", "out_of_range", "")],
    ),
    case(
        "f32",
        "type: float32",
        &[
            ("0.1", "0.1"),
            ("-3.4028234663852886e38", "-3.4028235e38"),
            ("1e-45", "1e-45"),
        ],
        &[("3.5e38", "out_of_range", "3.4e38")],
    ),
    case(
        "dec9",
        "type: 'decimal(9,2)'",
        &[
            ("\"9999999.99\"", "\"9999999.99\""),
            ("\"-9999999.99\"", "\"-9999999.99\""),
            ("0.1", "\"0.1\""),
            ("-12", "\"-12\""),
            ("1e3", "\"1000\""),
            ("\"1.500000\"", "\"1.5\""),
        ],
        &[
            (
                "\"10000000\"",
                "out_of_range",
                "at most 7 digits before and 2 behind",
            ),
            ("0.125", "too_many_digits", "round it"),
            ("\"0.001\"", "too_many_digits", ""),
            ("\"1e3\"", "bad_decimal", ""),
            ("\"\"", "bad_decimal", ""),
            ("true", "wrong_type", "decimal"),
        ],
    ),
    case(
        "dec38",
        "type: 'decimal(38,10)'",
        &[
            (
                "\"9999999999999999999999999999.9999999999\"",
                "\"9999999999999999999999999999.9999999999\"",
            ),
            ("18446744073709551615", "\"18446744073709551615\""),
            ("123456.789012345", "\"123456.789012345\""),
        ],
        &[("0.1234567890123456", "too_many_digits", "as a string")],
    ),
    case(
        "dec76",
        "type: 'nullable(decimal(76,38))'",
        &[
            (
                "\"-99999999999999999999999999999999999999.99999999999999999999999999999999999999\"",
                "\"-99999999999999999999999999999999999999.99999999999999999999999999999999999999\"",
            ),
            (
                "\"0.00000000000000000000000000000000000001\"",
                "\"0.00000000000000000000000000000000000001\"",
            ),
            ("null", "null"),
        ],
        &[(
            "\"100000000000000000000000000000000000000\"",
            "out_of_range",
            "38 digits before",
        )],
    ),
    case(
        "day",
        "type: date",
        &[
            ("\"1970-01-01\"", "\"1970-01-01\""),
            ("\"2149-06-06\"", "\"2149-06-06\""),
            ("\"2024-02-29\"", "\"2024-02-29\""),
        ],
        &[
            ("\"1969-12-31\"", "out_of_range", "1970-01-01 to 2149-06-06"),
            ("\"2149-06-07\"", "out_of_range", ""),
            ("\"2026-02-29\"", "bad_date", "does not exist"),
            ("\"2026-11-21T00:00:00Z\"", "bad_date", "like 2026-11-21"),
            ("20000", "wrong_type", ""),
        ],
    ),
    case(
        "day32",
        "type: date32",
        &[
            ("\"1900-01-01\"", "\"1900-01-01\""),
            ("\"2299-12-31\"", "\"2299-12-31\""),
        ],
        &[
            ("\"1899-12-31\"", "out_of_range", ""),
            ("\"2300-01-01\"", "out_of_range", ""),
        ],
    ),
    case(
        "seconds",
        "type: datetime, epoch: s",
        &[
            ("0", "\"1970-01-01 00:00:00\""),
            ("4294967295", "\"2106-02-07 06:28:15\""),
            ("\"2026-11-21T03:30:30.999+01:00\"", "\"2026-11-21 02:30:30\""),
        ],
        &[
            ("4294967296", "out_of_range", "2106-02-07"),
            ("-1", "out_of_range", ""),
            (
                "\"2026-11-21T03:30:30\"",
                "bad_timestamp",
                "too short for date, time and offset",
            ),
        ],
    ),
    case(
        "berlin",
        "type: \"datetime('Europe/Berlin')\", timezone: Europe/Berlin",
        &[
            ("\"2026-07-01T12:00:00\"", "\"2026-07-01 12:00:00\""),
            ("\"2026-07-01T12:00:00Z\"", "\"2026-07-01 14:00:00\""),
            ("\"1970-01-01T01:00:00\"", "\"1970-01-01 01:00:00\""),
        ],
        &[
            ("\"2026-03-29T02:30:00\"", "bad_timestamp", "skipped"),
            ("\"1970-01-01T00:59:59\"", "out_of_range", ""),
            ("5", "epoch_without_unit", "local time of Europe/Berlin"),
        ],
    ),
    case(
        "millis",
        "type: \"datetime64(3, 'America/St_Johns')\", timezone: Europe/Berlin",
        &[
            // Half past two comes twice; the first one is summer time.
            ("\"2026-10-25T02:30:00.125\"", "\"2026-10-24 22:00:00.125\""),
            ("\"2299-12-31T23:59:59.999Z\"", "\"2299-12-31 20:29:59.999\""),
        ],
        &[("\"2300-01-01T01:00:00\"", "out_of_range", "")],
    ),
    case(
        "id16",
        "type: uuid",
        &[
            (
                "\"00112233-4455-6677-8899-aabbccddeeff\"",
                "\"00112233-4455-6677-8899-aabbccddeeff\"",
            ),
            (
                "\"F47AC10B58CC4372A5670E02B2C3D479\"",
                "\"f47ac10b-58cc-4372-a567-0e02b2c3d479\"",
            ),
            (
                "\"ffffffff-ffff-ffff-ffff-ffffffffffff\"",
                "\"ffffffff-ffff-ffff-ffff-ffffffffffff\"",
            ),
        ],
        &[
            ("\"{00112233-4455-6677-8899-aabbccddeeff}\"", "bad_uuid", ""),
            ("\"\"", "bad_uuid", ""),
            ("7", "wrong_type", "UUID"),
        ],
    ),
    case(
        "id16n",
        "type: nullable(uuid)",
        &[
            ("null", "null"),
            (
                "\"00000000-0000-0000-0000-000000000000\"",
                "\"00000000-0000-0000-0000-000000000000\"",
            ),
        ],
        &[],
    ),
    case(
        "ip4",
        "type: ipv4",
        &[
            ("\"0.0.0.0\"", "\"0.0.0.0\""),
            ("\"255.255.255.255\"", "\"255.255.255.255\""),
            ("\"::ffff:192.0.2.1\"", "\"192.0.2.1\""),
        ],
        &[
            ("\"256.0.0.1\"", "bad_address", ""),
            ("\"192.0.2.01\"", "bad_address", ""),
            ("\"2001:db8::1\"", "bad_address", "IPv4"),
            ("3221225985", "wrong_type", ""),
        ],
    ),
    case(
        "ip6",
        "type: nullable(ipv6)",
        &[
            ("\"2001:DB8:0:0::1\"", "\"2001:db8::1\""),
            ("\"192.0.2.1\"", "\"::ffff:192.0.2.1\""),
            (
                "\"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff\"",
                "\"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff\"",
            ),
            ("\"::\"", "\"::\""),
            ("\"1::2:3:4:5:6:7\"", "\"1:0:2:3:4:5:6:7\""),
            ("null", "null"),
        ],
        &[
            ("\"fe80::1%eth0\"", "bad_address", "IPv6"),
            ("\":::\"", "bad_address", ""),
        ],
    ),
    case(
        "fruit",
        "type: \"enum('apple' = -5, 'pear tree' = 3, 'Ünï\\\\'s' = 300)\"",
        &[
            ("\"apple\"", "\"apple\""),
            ("\"pear tree\"", "\"pear tree\""),
            ("\"Ünï's\"", "\"Ünï's\""),
        ],
        &[
            ("\"Apple\"", "not_in_enum", "\"pear tree\""),
            ("\"\"", "not_in_enum", ""),
            ("3", "wrong_type", "one of"),
        ],
    ),
    with_default(
        case(
            "size",
            "type: 'nullable(enum(s,m,l))', default: m",
            &[("null", "null"), ("\"l\"", "\"l\"")],
            &[("\"xl\"", "not_in_enum", "")],
        ),
        "\"m\"",
    ),
    case(
        "code",
        "type: fixed_string(3)",
        &[
            ("\"abc\"", "\"abc\""),
            ("\"a\"", "\"a\\u0000\\u0000\""),
            ("\"é\"", "\"é\\u0000\""),
            ("\"ab\\u0000\\u0000\\u0000\"", "\"ab\\u0000\""),
        ],
        &[
            ("\"abcd\"", "over_fixed_length", "at most 3 bytes"),
            ("\"éé\"", "over_fixed_length", ""),
            ("1", "wrong_type", ""),
        ],
    ),
    case(
        "lcn",
        "type: low_cardinality(nullable(string))",
        &[("\"x\"", "\"x\""), ("\"\"", "\"\""), ("null", "null")],
        &[("1", "wrong_type", "")],
    ),
    case(
        "tags",
        "type: array(string)",
        &[
            ("[]", "[]"),
            ("[\"\", \"ü\\u0000\", \"\"]", "[\"\", \"ü\\u0000\", \"\"]"),
        ],
        &[
            ("[\"a\", 5]", "wrong_type", "at tags[1]: got 5"),
            ("[\"a\", null]", "null_not_allowed", "at tags[1]"),
            ("\"a\"", "wrong_type", "an array"),
            ("{\"a\": \"b\"}", "wrong_type", ""),
        ],
    ),
    case(
        "labels",
        "type: array(nullable(low_cardinality(string)))",
        &[("[\"a\", null, \"a\", \"b\"]", "[\"a\", null, \"a\", \"b\"]")],
        &[("[[]]", "wrong_type", "at labels[0]")],
    ),
    case(
        "matrix",
        "type: array(array(nullable(int16)))",
        &[
            ("[[], [1, null, -32768], []]", "[[], [1, null, -32768], []]"),
            ("[]", "[]"),
            ("[[]]", "[[]]"),
        ],
        &[
            ("[[1], [2, 32768]]", "out_of_range", "at matrix[1][1]: got 32768"),
            ("[[1], 2]", "wrong_type", "at matrix[1]"),
            ("[[1], null]", "null_not_allowed", "at matrix[1]"),
        ],
    ),
    with_default(
        case(
            "prices",
            "type: 'array(decimal(18,4))', default: [\"1.5\", 2]",
            &[("[\"0.0001\", 99999999999999]", "[\"0.0001\", \"99999999999999\"]")],
            &[("[1, \"0.00001\"]", "too_many_digits", "at prices[1]")],
        ),
        "[\"1.5\", \"2\"]",
    ),
    case(
        "mixed",
        "type: \"array(enum('on', 'off'))\"",
        &[("[\"off\", \"on\", \"off\"]", "[\"off\", \"on\", \"off\"]")],
        &[("[\"on\", \"of\"]", "not_in_enum", "at mixed[1]")],
    ),
    case(
        "hosts",
        "type: array(nullable(ipv6))",
        &[(
            "[\"::1\", null, \"1.2.3.4\"]",
            "[\"::1\", null, \"::ffff:1.2.3.4\"]",
        )],
        &[("[\"x\"]", "bad_address", "at hosts[0]")],
    ),
    case(
        "ids",
        "type: array(nullable(uuid))",
        &[(
            "[\"00112233-4455-6677-8899-aabbccddeeff\", null]",
            "[\"00112233-4455-6677-8899-aabbccddeeff\", null]",
        )],
        &[("[\"x\"]", "bad_uuid", "at ids[0]")],
    ),
    case(
        "days",
        "type: array(date)",
        &[(
            "[\"1970-01-01\", \"2149-06-06\"]",
            "[\"1970-01-01\", \"2149-06-06\"]",
        )],
        &[("[\"2149-06-07\"]", "out_of_range", "at days[0]")],
    ),
    case(
        "days32",
        "type: array(date32)",
        &[(
            "[\"1900-01-01\", \"2299-12-31\"]",
            "[\"1900-01-01\", \"2299-12-31\"]",
        )],
        &[],
    ),
    case(
        "times",
        "type: array(datetime64(3)), epoch: ms, timezone: Europe/Berlin",
        &[(
            "[1, \"2026-07-01T02:00:00\"]",
            "[\"1970-01-01 00:00:00.001\", \"2026-07-01 00:00:00.000\"]",
        )],
        &[("[true]", "wrong_type", "at times[0]")],
    ),
    case(
        "codes",
        "type: array(fixed_string(2))",
        &[("[\"a\", \"bc\"]", "[\"a\\u0000\", \"bc\"]")],
        &[("[\"abc\"]", "over_fixed_length", "at codes[0]")],
    ),
    case(
        "counts",
        "type: 'map(string,uint8)'",
        &[
            ("{}", "{}"),
            ("{\"b\": 255, \"a\": 0, \"gone\": null}", "{\"b\": 255, \"a\": 0}"),
            ("{\"a\": 1, \"a\": 2}", "{\"a\": 2}"),
        ],
        &[
            (
                "{\"a\": 1, \"b\": 256}",
                "out_of_range",
                "at counts[\"b\"]: got 256",
            ),
            ("[1]", "wrong_type", "an object"),
        ],
    ),
    with_default(
        case(
            "ratios",
            "type: 'map(string,nullable(float64))', default: {x: 0.5, y: null}",
            &[("{\"a\": 1.5, \"n\": null}", "{\"a\": 1.5, \"n\": null}")],
            &[("{\"a\": \"1.5\"}", "wrong_type", "at ratios[\"a\"]")],
        ),
        "{\"x\": 0.5, \"y\": null}",
    ),
    case(
        "nested",
        "type: 'map(string,map(string,string))'",
        &[(
            "{\"a\": {\"k\": \"v\", \"o\": 5}, \"b\": {}}",
            "{\"a\": {\"k\": \"v\", \"o\": \"5\"}, \"b\": {}}",
        )],
        &[("{\"a\": \"b\"}", "wrong_type", "at nested[\"a\"]")],
    ),
    case(
        "deep",
        "type: \"map(string,array(map(string,low_cardinality(string))))\"",
        &[(
            "{\"a\": [{\"k\": \"v\"}, {}], \"b\": []}",
            "{\"a\": [{\"k\": \"v\"}, {}], \"b\": []}",
        )],
        &[(
            "{\"a\": [{}, {\"k\": 1}]}",
            "wrong_type",
            "at deep[\"a\"][1][\"k\"]",
        )],
    ),
    with_default(
        case(
            "doc",
            "type: json, default: {a: {b: [1]}}",
            &[
                ("{}", "{}"),
                (
                    "{\"z\": 1, \"a\": {\"t\": \"2026-11-21 03:30:30\", \"d\": \"2026-11-21\"}}",
                    "{\"a\": {\"d\": \"2026-11-21\", \"t\": \"2026-11-21 03:30:30\"}, \"z\": \"1\"}",
                ),
                (
                    "{\"b\": [true, false, \"x\", null, 1.5], \"f\": 0.1, \"n\": \"12\"}",
                    "{\"b\": [true, false, \"x\", null, 1.5], \"f\": 0.1, \"n\": \"12\"}",
                ),
                (
                    "{\"a\": [{\"b\": 1.5}, {\"b\": {\"c\": \"d\"}}], \"e.f\": \"g\"}",
                    "{\"a\": [{\"b\": 1.5}, {\"b\": {\"c\": \"d\"}}], \"e\": {\"f\": \"g\"}}",
                ),
                (
                    "{\"n\": null, \"o\": {}, \"l\": [null], \"k\": []}",
                    "{\"k\": [], \"l\": [null]}",
                ),
            ],
            &[
                ("[1]", "wrong_type", "an object"),
                ("\"{}\"", "wrong_type", ""),
                ("{\"a\": 1, \"a\": 2}", "duplicate_field", "there twice"),
                ("{\"a.b\": 1, \"a\": {\"b\": 2}}", "duplicate_field", ""),
                ("{\"a\": [{\"b\": 1, \"b\": 2}]}", "duplicate_field", ""),
            ],
        ),
        "{\"a\": {\"b\": [\"1\"]}}",
    ),
];
