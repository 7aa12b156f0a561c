use super::*;

/// Of "Verifying the RSS Hash Calculation", as the vectors below are.
const VERIFYING: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

fn rss(hashes_ports: bool, table: Vec<u32>) -> Rss {
    Rss {
        function: TOEPLITZ,
        transformation: 0,
        hashes_ports: [hashes_ports; 2],
        hashes_udp_ports: [hashes_ports; 2],
        key: VERIFYING.to_vec(),
        table,
    }
}

#[test]
fn the_hash_is_that_of_the_published_vectors() {
    // Destination, source, hash of the addresses, hash with TCP's ports.
    let vectors = [
        (
            ("161.142.100.80", 1766),
            ("66.9.149.187", 2794),
            0x323e_8fc2,
            0x51cc_c178,
        ),
        (
            ("65.69.140.83", 4739),
            ("199.92.111.2", 14230),
            0xd718_262a,
            0xc626_b0ea,
        ),
        (
            ("12.22.207.184", 38024),
            ("24.19.198.95", 12898),
            0xd2d0_a5de,
            0x5c2b_394a,
        ),
        (
            ("209.142.163.6", 2217),
            ("38.27.205.30", 48228),
            0x8298_9176,
            0xafc7_327f,
        ),
        (
            ("202.188.127.2", 1303),
            ("153.39.163.191", 44251),
            0x5d18_09c5,
            0x10e8_28a2,
        ),
        (
            ("3ffe:2501:200:3::1", 1766),
            ("3ffe:2501:200:1fff::7", 2794),
            0x2cc1_8cd5,
            0x4020_7d3d,
        ),
        (
            ("ff02::1", 4739),
            ("3ffe:501:8::260:97ff:fe40:efab", 14230),
            0x0f0c_461c,
            0xdde5_1bbf,
        ),
        (
            ("fe80::200:f8ff:fe21:67cf", 38024),
            ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251),
            0x4b61_e985,
            0x02d1_feef,
        ),
    ];
    for (to, from, addresses, ports) in vectors {
        let end = |(address, port): (&str, u16)| (address.parse().unwrap(), port);
        let ends = Ends {
            from: end(from),
            to: end(to),
        };
        assert_eq!(rss(false, vec![]).hash(&ends), Some(addresses), "{ends:?}");
        assert_eq!(rss(true, vec![]).hash(&ends), Some(ports), "{ends:?}");
    }
}

#[test]
fn the_low_bits_of_the_hash_choose_from_the_table() {
    let ends = Ends {
        from: ("66.9.149.187".parse().unwrap(), 2794),
        to: ("161.142.100.80".parse().unwrap(), 1766),
    };
    let mut table = vec![0; 128];
    table[0x78] = 3; // of 0x51ccc178
    assert_eq!(rss(true, table.clone()).queue(&ends), Some(3));
    assert_eq!(rss(true, table.clone()).queues(), 4);
    let other = Rss {
        transformation: 1,
        ..rss(true, table)
    };
    assert_eq!(other.queue(&ends), None, "another function");
    assert_eq!(rss(true, vec![]).queue(&ends), None, "no table");
}

#[test]
fn a_hash_that_knows_nothing_of_owners_misses_them_as_chance_has_it() {
    let steering = Steering::new(4, vec![1_024..=29_999, 32_768..=65_535]);
    let misses = |table, traffic, ipv6| rss(true, table).misses(traffic, ipv6, &steering).unwrap();
    for traffic in [Traffic::Clients, Traffic::Answers] {
        for ipv6 in [false, true] {
            let misses = misses((0..128).map(|n| n % 4).collect(), traffic, ipv6);
            assert_eq!((misses.packets, misses.unserved), (SAMPLE, 0));
            assert!((70..80).contains(&misses.percent()), "{misses:?}");
        }
    }
    // All packets in one queue: those of its worker's flows are where they belong.
    let one = misses(vec![2; 128], Traffic::Clients, false);
    assert!((70..80).contains(&one.percent()), "{one:?}");
    // Two queues more than there are workers.
    let more = misses((0..126).map(|n| n % 6).collect(), Traffic::Clients, false);
    assert!(more.unserved.abs_diff(SAMPLE / 3) < SAMPLE / 20, "{more:?}");
}

/// An interface with another key and table, and one set for this.
fn set(faces: Faces, workers: u8, ipv4: bool, entries: usize) -> (Steering, Option<Rss>) {
    let steering = Steering::new(workers, vec![1_024..=29_999, 32_768..=65_535]);
    let spread = Spread {
        faces,
        owners: *steering.owners(),
        ipv4,
    };
    let before = rss(true, vec![0; entries]);
    (steering, before.set_for(&spread).ok())
}

#[test]
fn with_the_key_that_is_made_for_it_every_packet_comes_to_its_owner() {
    for (faces, traffic) in [
        (Faces::Clients, Traffic::Clients),
        (Faces::Endpoints, Traffic::Answers),
    ] {
        for workers in [1, 2, 3, 4, 12, 64] {
            for entries in [128, 512, 2_048] {
                let (steering, rss) = set(faces, workers, true, entries);
                let misses = rss.unwrap().misses(traffic, false, &steering).unwrap();
                assert_eq!(
                    misses,
                    Misses {
                        packets: SAMPLE,
                        ..Misses::default()
                    },
                    "{faces:?} {workers} {entries}"
                );
            }
        }
    }
}

#[test]
fn the_same_key_is_made_for_ipv6_unless_there_are_answers_of_both_families() {
    let misses = |faces, traffic, ipv4| {
        let (steering, rss) = set(faces, 4, ipv4, 128);
        rss.unwrap().misses(traffic, true, &steering).unwrap().handed_over
    };
    assert_eq!(misses(Faces::Clients, Traffic::Clients, true), 0);
    assert_eq!(misses(Faces::Clients, Traffic::Clients, false), 0);
    assert_eq!(misses(Faces::Endpoints, Traffic::Answers, false), 0);
    assert!(
        misses(Faces::Endpoints, Traffic::Answers, true) > 0,
        "as the module says"
    );
}

#[test]
fn a_short_table_does_for_as_many_workers_as_divide_it() {
    for (workers, fits) in [(2, true), (64, true), (3, false)] {
        let (steering, rss) = set(Faces::Clients, workers, true, 64);
        assert_eq!(rss.is_some(), fits, "{workers}");
        let misses = rss.map(|rss| rss.misses(Traffic::Clients, false, &steering).unwrap());
        assert_eq!(misses.map_or(0, |misses| misses.handed_over), 0);
    }
    assert_eq!(
        set(Faces::Clients, 2, true, 100).1,
        None,
        "no bits choose from it"
    );
    assert_eq!(set(Faces::Clients, 2, true, 0).1, None);
    let spread = Spread {
        faces: Faces::Clients,
        owners: *Steering::new(2, vec![]).owners(),
        ipv4: true,
    };
    let short = Rss {
        key: vec![0; 39],
        ..rss(true, vec![0; 128])
    };
    assert!(short.set_for(&spread).unwrap_err().contains("a key of 39 bytes"));
}
